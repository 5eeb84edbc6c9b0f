"""Buildings as a map has them: outlines with areas on the ground, right angles, files of them."""
