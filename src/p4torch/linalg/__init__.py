"""Linear algebra: precision, small matrices, low-rank perturbations, inverses, orthonormality."""

from p4torch.linalg.inversion import (
    hyperpower as hyperpower,
)
from p4torch.linalg.inversion import (
    inversion_residual as inversion_residual,
)
from p4torch.linalg.inversion import (
    probe_residual as probe_residual,
)
from p4torch.linalg.orthonormal import (
    GRAM_CONDITION as GRAM_CONDITION,
)
from p4torch.linalg.orthonormal import (
    NEAR as NEAR,
)
from p4torch.linalg.orthonormal import (
    STEPS as STEPS,
)
from p4torch.linalg.orthonormal import (
    gram_error as gram_error,
)
from p4torch.linalg.orthonormal import (
    orthonormal as orthonormal,
)
from p4torch.linalg.orthonormal import (
    orthonormalized as orthonormalized,
)
from p4torch.linalg.orthonormal import (
    probe_rows as probe_rows,
)
from p4torch.linalg.orthonormal import (
    reorthonormalize_block as reorthonormalize_block,
)
from p4torch.linalg.orthonormal import (
    short_rows as short_rows,
)
from p4torch.linalg.precision import (
    LU_STACK as LU_STACK,
)
from p4torch.linalg.precision import (
    at_least_single as at_least_single,
)
from p4torch.linalg.precision import (
    autocasts as autocasts,
)
from p4torch.linalg.precision import (
    double_of as double_of,
)
from p4torch.linalg.precision import (
    eye_like as eye_like,
)
from p4torch.linalg.precision import (
    full_precision as full_precision,
)
from p4torch.linalg.precision import (
    in_double as in_double,
)
from p4torch.linalg.precision import (
    scaled_by_largest as scaled_by_largest,
)
from p4torch.linalg.precision import (
    unbatched as unbatched,
)
from p4torch.linalg.small import (
    logabsdet as logabsdet,
)
from p4torch.linalg.small import (
    phi1 as phi1,
)
from p4torch.linalg.small import (
    slogdet as slogdet,
)
from p4torch.linalg.small import (
    solve as solve,
)
from p4torch.linalg.small import (
    solve_rows as solve_rows,
)
from p4torch.linalg.small import (
    symplectic_form as symplectic_form,
)
from p4torch.linalg.woodbury import (
    BLOCK as BLOCK,
)
from p4torch.linalg.woodbury import (
    SMALL as SMALL,
)
from p4torch.linalg.woodbury import (
    add_low_rank as add_low_rank,
)
from p4torch.linalg.woodbury import (
    blockwise as blockwise,
)
from p4torch.linalg.woodbury import (
    both_sides as both_sides,
)
from p4torch.linalg.woodbury import (
    capacitance as capacitance,
)
from p4torch.linalg.woodbury import (
    column_major as column_major,
)
from p4torch.linalg.woodbury import (
    low_rank as low_rank,
)
from p4torch.linalg.woodbury import (
    refined_solves as refined_solves,
)
from p4torch.linalg.woodbury import (
    rounded_sum as rounded_sum,
)
from p4torch.linalg.woodbury import (
    row_blocks as row_blocks,
)
from p4torch.linalg.woodbury import (
    rows_times as rows_times,
)
from p4torch.linalg.woodbury import (
    tall_matmul as tall_matmul,
)
