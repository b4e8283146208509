"""What the replay measures beside the recommender: methods that others trust, each with a small grid to be tuned on."""
