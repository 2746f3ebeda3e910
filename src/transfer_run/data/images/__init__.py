"""What data sets of images and videos share."""
