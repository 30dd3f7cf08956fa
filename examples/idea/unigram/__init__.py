"""An idea, whole: what counts of tokens alone would predict, beside what the model does."""
