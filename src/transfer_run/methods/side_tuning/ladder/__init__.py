"""The side network beside a backbone: LST and its kin."""
