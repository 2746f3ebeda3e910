"""MLP mixers over patches, features and channels: what Tiny Time Mixers are made of."""
