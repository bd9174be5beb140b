"""Biometric information out of training text: what tells it, how it is said neutrally, proof of what was changed."""
