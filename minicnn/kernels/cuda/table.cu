// Many arrays in one launch: launched one by one, the launches would take longer than the work. A table of
// where they all lie goes along with the launch, and every block looks up which one it works on.

// The last row of table t that begins at this block or before; t.first[row] is the block that begins it.
template <class Table>
__device__ __forceinline__ int row_of(const Table& t) {
    int row = 0, last = t.count - 1;
    while (row < last) {
        const int middle = (row + last + 1) / 2;
        if (t.first[middle] <= (int)blockIdx.x) row = middle;
        else last = middle - 1;
    }
    return row;
}
