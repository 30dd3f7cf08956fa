"""The speedrun: who learns most of a text in so many CPU seconds."""
