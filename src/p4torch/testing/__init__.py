"""Public checks: run them on your own perturbations as our suite runs them on ours."""

from p4torch.testing.bijections import check_bijection
from p4torch.testing.equivariance import check_equivariance
from p4torch.testing.perturbations import check_perturbation

__all__ = ["check_bijection", "check_equivariance", "check_perturbation"]
