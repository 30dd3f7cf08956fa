"""The contestants of the speedrun: this project's main job, other projects' recipes, and counts.

The recipes of others are written anew from their published settings, not copied; each file says what of its project is
used as it is (Hugging Face's Trainer and GPT-2, litgpt's GPT) and what is done again here.
"""
