"""What a network looked at: class activation maps, their agreement with lesion masks, occlusion."""
