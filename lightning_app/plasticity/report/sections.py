"""The sections of a plasticity run's page, in their order."""

from lightning_app.plasticity.report.cycle_sections import FINETUNING, IMPACT, STABILISATION, TIMELINE
from lightning_app.plasticity.report.head_sections import ALIVE, ANALYSES, CHOSEN, GATES, GRADIENTS
from lightning_app.plasticity.report.model_sections import AGAINST, PROOFS, RATES, SAMPLES
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
