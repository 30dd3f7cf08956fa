"""The sections of a plasticity run's page, in their order."""

from lightning_app.plasticity.report.of_cycles import FINETUNING, IMPACT, STABILISATION, TIMELINE
from lightning_app.plasticity.report.of_heads import ALIVE, ANALYSES, CHOSEN, GATES, GRADIENTS
from lightning_app.plasticity.report.of_model import AGAINST, PROOFS, RATES, SAMPLES
from lightning_app.plasticity.report.summary import SUMMARY

SECTIONS = (
    SUMMARY,
    TIMELINE,
    STABILISATION,
    ANALYSES,
    GRADIENTS,
    CHOSEN,
    ALIVE,
    IMPACT,
    FINETUNING,
    AGAINST,
    SAMPLES,
    RATES,
    GATES,
    PROOFS,
)
