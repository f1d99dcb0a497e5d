"""What descriptions, body parts and kernels of the vendors name."""

import pytest

from cohortseg.dicom.names import names_expiration, names_other_parts, names_spectral
from cohortseg.kernels import kernel_kind


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("B30f", "soft"),
        ("B70f", "sharp"),
        ("Br40d\\3", "soft"),
        ("Bl57d", "sharp"),
        ("I31s", "soft"),
        ("FC08", "soft"),
        ("FC51", "sharp"),
        ("STANDARD", "soft"),
        ("LUNG", "sharp"),
        ("YC", "sharp"),
        ("FC08-H", "soft"),
        ("FC51-H", "sharp"),
        ("B_SOFT_B", "soft"),
        ("B_SHARP_C", "sharp"),
        ("BONE PLUS", "sharp"),
        ("Lung+", "sharp"),
        ("something", None),
        (None, None),
    ],
)
def test_kernels_of_the_vendors(kernel: str | None, kind: str | None) -> None:
    assert kernel_kind(kernel) == kind


@pytest.mark.parametrize(
    ("names", "others_only"),
    [
        (("CHEST", "Thin"), False),
        ((None, "THORAX_HR 1.0 I70f"), False),
        ((None, "Chest/Abdomen/Pelvis"), False),
        ((None, "CAP w/ contrast"), False),
        (("ABDOMEN", None), True),
        ((None, "WB low dose"), False),
        ((None, "CH/ABD/PEL 5mm"), False),
        ((None, "CHST ABD PEL W"), False),
        ((None, "HEADFIRST 5.0"), False),
        *(((None, name), False) for name in ("CH_ABD_PEL 5.0", "CHABDPEL", "TX-ABD", "Tho-Abd", "TOTALBODY ABD")),
        *(((None, name), False) for name in ("NCAP NECK", "HEAD TO PELVIS", "SKULL BASE TO THIGH", "CT TRUNK ABD")),
        *(((None, name), False) for name in ("CHST PELVIS", "CHST W ABD", "ABD CHST", "CH/PELVIS", "ABD/CH/PEL")),
        *(
            ((None, name), True)
            for name in ("RENAL TX", "LIVER TX ABDOMEN", "HEAD FIRST PELVIS", "FEMORAL HEAD PELVIS")
        ),
        ((None, "HEAD 5.0"), True),
        *(
            (("CHEST", name), True)
            for name in (
                "Abdomen 3.0",
                "T-Spine 2.0 Br60",
                "BWS 2.0",
                "Batin 3.0",
                "T SPINE THORACIC",
                "Thorax spine",
                "EXTREMITY",
                "LEG RUNOFF",
            )
        ),
        *(
            ((None, name), True)
            for name in (
                "Thoracic Spine 2.0",
                "THORACOLUMBAR",
                "THORACIC AND LUMBAR SPINE",
                "Rachide toracico",
                "брюшная полость",
                "颈部",
            )
        ),
        *(
            (("CHEST", name), False)
            for name in ("PORTAL VENOUS 5.0", "NECK TO PELVIS", "NECK-PELVIS", "PELVIS TO NECK", "CA PELVIS")
        ),
        *(
            (("CHEST", name), False)
            for name in (
                "TH.ABD.BECKEN",
                "ABD/TH",
                "CHE/ABD/PEL",
                "Polytrauma Schaedel HWS Rumpf",
                "Tumor Imaging Skull Thigh",
                "PET-CT Head to Toe",
                "흉복부",
                "APEX TO ADRENALS",
                "ARMS OVERHEAD",
                "EXTREMELY LOW DOSE",
                "LEGACY",
                "COLUMBIA CT",
                "UMBRICHT",
                "CHEST/T-SPINE",
            )
        ),
        *(((None, name), False) for name in ("TORAKS-ABDOMEN", "Bröst buk", "PLUĆA ABD", "CTA AORTA ABD THOR")),
        (("ABDOMEN", "Thorax 5.0"), False),
        ((None, "Body 5.0"), False),
        ((None, None), False),
    ],
)
def test_names_of_other_parts_than_the_chest(names: tuple[str | None, str | None], others_only: bool) -> None:
    body_part, description = names
    assert names_other_parts(description, body_part) is others_only


@pytest.mark.parametrize(
    ("description", "named"),
    [
        *(
            (name, True)
            for name in (
                *("CHEST EXP 1.25", "thorax_exspiration", "Exhale", "EKSPIRYUM 1.0", "výdech", "呼气"),
                *("Thorax 1.0 Br40 50% Ex", "T=50%,1.0,Ex"),
            )
        ),
        *(
            (name, False)
            for name in (
                "Expert review",
                "INSP",
                "HRCT INSP/EXP",
                "InSpace",
                "espiral 1.0",
                "ASIR 50% Expert",
                "50% In",
                None,
            )
        ),
    ],
)
def test_names_of_expiration(description: str | None, named: bool) -> None:
    assert names_expiration(description) is named


@pytest.mark.parametrize(
    "description",
    [
        *(
            "Chest VNC 1.5 Qr40",
            "Mono+ 50 keV",
            "Thorax_LungPBV",
            "GSI 70keV",
            "MonoE_40keV",
            "VUE",
            "VIRTUAL NATIVE",
            "VIRTUAL NON CON",
            "MONO+ Br36",
            "CaSuppression 50",
            "Iodine(-Water)",
            "Iodmap",
            "VUE IODINE",
            "DEIM Iodine",
            "VMS 70",
            "MD Iodine(Water)",
        ),
        *(
            "Water(Iodine)",
            "Ax VUE (Water)",
            "Effective Z",
            "monochromatic 70",
            "virtuell nativ",
            "Iodine",
            "CaSupp 50",
            "VMS 70",
        ),
        *("DE_Thorax 1.0 D30f A_80kV", "B_Sn140kV"),
        *("Z Effective", "Iodine no Water[mg/ml]", "DE_Virtual_Non_Contrast", "Monoenergetic 60", "MD Iodine(Water)"),
    ],
)
def test_names_of_images_of_several_energies(description: str) -> None:
    assert names_spectral(description)


@pytest.mark.parametrize(
    "description",
    [
        *(
            "Thorax 1.0 B30f",
            "Chest with iodine",
            "Sn100kV",
            "MONOCHROME",
            None,
            "M_0.5 D30f",
            "A 120kV",
            "MONO 1.25 CHEST",
            "THORAX MONO 1.0",
        ),
        *("Vue axiale 1.25 parenchyme", "Mono 1 phase", "iDose (3) VUE"),
        *(
            "CHEST MONO 120 kV",
            "Chest mono 120kVp",
            "THORAX MONO + KM",
            "CA SUPPORT",
            "MONO 100 mA",
            "mono 40mm",
            "Mono 60s delay",
        ),
    ],
)
def test_names_of_plain_scans(description: str | None) -> None:
    assert not names_spectral(description)
