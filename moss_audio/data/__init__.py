"""Where training data comes from: sources on disk, speech synthesis, manifests."""
