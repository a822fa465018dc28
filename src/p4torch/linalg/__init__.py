"""Linear algebra: precision, small matrices, low-rank perturbations, inverses, orthonormality."""

from p4torch.linalg.exponential import exponential_rows as exponential_rows
from p4torch.linalg.inversion import (
    hyperpower as hyperpower,
    inversion_residual as inversion_residual,
    probe_residual as probe_residual,
)
from p4torch.linalg.orthonormal import (
    GRAM_CONDITION as GRAM_CONDITION,
    NEAR as NEAR,
    STEPS as STEPS,
    gram_error as gram_error,
    orthonormal as orthonormal,
    orthonormalized as orthonormalized,
    probe_rows as probe_rows,
    reorthonormalize_block as reorthonormalize_block,
    short_rows as short_rows,
)
from p4torch.linalg.precision import (
    LU_STACK as LU_STACK,
    at_least_single as at_least_single,
    autocasts as autocasts,
    double_of as double_of,
    eye_like as eye_like,
    full_precision as full_precision,
    in_double as in_double,
    scaled_by_largest as scaled_by_largest,
    unbatched as unbatched,
)
from p4torch.linalg.small import (
    logabsdet as logabsdet,
    phi1 as phi1,
    slogdet as slogdet,
    solve as solve,
    solve_rows as solve_rows,
    symplectic_form as symplectic_form,
)
from p4torch.linalg.woodbury import (
    BLOCK as BLOCK,
    SMALL as SMALL,
    add_low_rank as add_low_rank,
    blockwise as blockwise,
    both_sides as both_sides,
    capacitance as capacitance,
    column_major as column_major,
    low_rank as low_rank,
    refined_solves as refined_solves,
    rounded_sum as rounded_sum,
    row_blocks as row_blocks,
    rows_times as rows_times,
    tall_matmul as tall_matmul,
)
