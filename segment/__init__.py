"""Find buildings in aerial photographs: data, training, evaluation and prediction around a U-Net."""
