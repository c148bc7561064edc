"""Losses of the logits: one file per loss, each a function (student, teacher, target) -> scalar."""
