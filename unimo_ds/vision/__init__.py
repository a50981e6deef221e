"""Pictures to regions: the bottom-up form of Faster R-CNN, its files, its training and the extraction of features."""
