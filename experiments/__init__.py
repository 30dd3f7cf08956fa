"""The project's claims: one command each, from training to a table with intervals and a picture."""
