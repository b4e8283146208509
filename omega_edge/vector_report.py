"""What the vectors of episodes and skills cost, in true bytes of RAM and of records, by encoding."""

from __future__ import annotations

from omega_edge.codebook_record import Codebook
from omega_edge.compression import BYTES, Encoding
from omega_edge.episodes import ReflexionMemory
from omega_edge.skills import SkillLibrary


def vector_report(episodes: ReflexionMemory, skills: SkillLibrary, codebook: Codebook) -> dict[str, object]:
    """Figures for stats(), by tier of memory and encoding.

    resident: vectors in RAM and the bytes of the arrays that hold them, ids and room for growth included; a centroid
    that is stored in float is searched as int8, and counts there. stored: records that hold a vector, and its bytes;
    the vectors of catalogue titles are not stored. saved_bytes: resident ones against float32 and nothing else.
    codebook: its bytes, in the store where it is kept there, and whether there is one.
    """
    report: dict[str, object] = {}
    for name, tier in (("episodes", episodes), ("skills", skills)):
        usage, stored = tier.usage(), tier.stored_vectors()
        count = sum(vectors for vectors, _size in usage.values())
        size = sum(size for _vectors, size in usage.values())
        report[name] = {
            "resident": {
                encoding.label: {"vectors": vectors, "bytes": held} for encoding, (vectors, held) in usage.items()
            },
            "stored": {
                encoding.label: {"vectors": stored[encoding], "bytes": stored[encoding] * BYTES[encoding]}
                for encoding in Encoding
            },
            "saved_bytes": count * BYTES[Encoding.FLOAT32] - size,
        }
    quantiser = codebook.quantiser
    report["codebook"] = {"bytes": quantiser.nbytes if quantiser else 0, "kept": codebook.kept}
    return report
