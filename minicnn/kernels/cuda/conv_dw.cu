// The kernels of convolve_dw.cu in float32.

CONV_DW(conv_dw_any, false, Tile<16, 4>)
CONV_DW(conv_dw_16, true, Tile<16, 4>)
CONV_DW(conv_dw_32, true, Tile<32, 4>)
CONV_DW(conv_dw_64, true, Tile<64, 8>)
