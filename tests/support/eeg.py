"What several tests of EEG share."
from pathlib import Path
from fasterprune.eeg.models import EEG2Saliency, EEG2SaliencyVAE

root = Path(__file__).resolve().parents[2]

nets = dict(plain=EEG2Saliency, vae=EEG2SaliencyVAE)
