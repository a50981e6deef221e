"""Text rewriting for cross-modal contrastive learning: scene graphs of captions, positives and hard negatives."""
