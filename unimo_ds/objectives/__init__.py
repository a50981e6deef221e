"""From the model's outputs to one loss: language, regions, contrastive, and their sum."""
