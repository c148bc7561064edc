"""How answers change with the image: corruptions, occlusion, shuffled patches, shifts and crops."""
