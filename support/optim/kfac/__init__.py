"""K-FAC: the natural gradient with a Kronecker-factored Fisher matrix.

``optimizer`` holds the method, ``layers`` takes the statistics of each kind of layer, ``fisher`` draws the
labels, ``algebra`` has the inverses.
"""

from support.optim.kfac.optimizer import KFAC

__all__ = ["KFAC"]
