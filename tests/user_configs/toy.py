"""The module that method/toy.yaml names; it stands outside the package, as a user's own does."""

NAME = "toy"
