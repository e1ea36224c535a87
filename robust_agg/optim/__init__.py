"""Training in the wild: a torch optimizer that steps by an online median of its gradients.

``w_{t+1} = w_t - η m_{t+1}``, ``m_{t+1} = m_t + C(g_t - m_t)``: eq. 17 of Schaipp, Şimşekli &
Gower, "Robust gradient estimation in the presence of heavy-tailed noise", 2023.
"""

from robust_agg.optim.attachment import OnlineEstimate

__all__ = ["OnlineEstimate"]
