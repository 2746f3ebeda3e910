"""What methods of any family put inside a backbone: where its parts are, and small modules beside them."""
