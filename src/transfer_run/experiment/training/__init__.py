"""One method fitted and tested on one data set."""
