"""The method: losses, margins, the sharded softmax."""
