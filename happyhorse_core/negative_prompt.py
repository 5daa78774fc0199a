"""What the base model is guided away from unless the user says otherwise: poor picture, poor sound, poor speech."""

PICTURE = (
    "overexposed, washed-out colours, grey cast, blurry, out of focus, low resolution, compression blocks, watermark, "
    "captions, painted or drawn look, frozen frame, flicker, cluttered background, crowd, malformed hands, extra or "
    "merged fingers, extra limbs, distorted face, distorted body, walking backwards"
)
SOUND = (
    "low-quality recording, hiss, hum, buzzing, crackling, clipping, distortion, muffled, tinny, boomy, echo, heavy "
    "reverberation, encoding artifacts, sudden silence, abrupt cut, looping noise, music, sirens, unrelated noises"
)
SPEECH = (
    "flat or robotic voice, synthetic speech, monotone, reading aloud, exaggerated acting, mumbling, stuttering, "
    "slurred words, wrong pronunciation, loud breathing, lip smacking, popping consonants, coughing, speech too fast, "
    "speech too slow, awkward pauses, several voices at once, off-key singing"
)
DEFAULT_NEGATIVE_PROMPT = f"{PICTURE}, {SOUND}, {SPEECH}"
