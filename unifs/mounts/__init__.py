"""Adapters: one backend each, shown as a subtree."""
