"""Reading released weights: the files they come in, the sizes they tell, and modules filled with them."""
