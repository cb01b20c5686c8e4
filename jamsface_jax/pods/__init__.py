"""The cost of a step without the pod."""
