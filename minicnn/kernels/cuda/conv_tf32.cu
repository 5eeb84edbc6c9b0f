// The kernels of convolve.cu on tensor cores.

CONV(conv_tf32_16, true, TensorTile<16, 2>)
CONV(conv_tf32_32, true, TensorTile<32, 4>)
CONV(conv_tf32_64, true, TensorTile<64, 4>)
