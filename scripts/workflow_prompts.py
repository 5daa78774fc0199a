"""The example prompts of the workflows: a description of 150 to 200 words, who says what, what else is heard."""

RAIN = """\
A woman of about thirty with short dark hair and a mustard-yellow knitted jumper sits at a wooden kitchen table beside \
a tall window on a rainy morning. The camera stays still at eye level, framing her from the chest up, a little left of \
the centre. Soft grey daylight falls from the right and models her face gently; behind her, out of focus, are a shelf \
with glass jars, a copper kettle and a hanging plant. She holds a white ceramic cup in both hands, with a thin line of \
steam above it. At first she looks out at the rain with a thoughtful expression. Then she turns to the camera, her \
eyebrows rise a little, and a warm smile spreads over her face while she begins to speak in a calm, friendly voice, \
nodding once at the end of her sentence. Her shoulders move slightly with her breath, and drops of rain run down the \
glass. The picture is natural and finely detailed, with muted colours and a shallow depth of field.

Dialogue:
<Woman with short dark hair, English>: "It has been raining all morning, and I could not be happier."

Background Sound:
<Soft rain against the window>"""

FROM_PICTURE = """\
The clip begins with the given picture and continues it naturally in one shot. The person looks into the camera with \
an open, relaxed expression, takes a short breath and begins to speak in a calm and friendly voice. The lips, the jaw \
and the cheeks move in time with each word; the eyes stay on the camera and blink now and then, and the head tilts a \
little to one side at the end of the sentence. Hair and clothes move slightly with each movement of the head and \
shoulders. The camera stands still at eye level and keeps the framing of the picture. The light stays as it is, soft \
and even, and so do the colours, the background and its depth of field. Nothing new enters the picture and nothing in \
it changes shape; the movement is small, smooth and lifelike throughout, with the fine detail of skin, hair and cloth \
kept sharp from the first frame to the last.

Dialogue:
<Person in the picture, English>: "Hello there. I did not expect to see you so soon."

Background Sound:
<No prominent background sound>"""

FROM_SOUND = """\
The clip begins with the given picture and shows the person in it saying exactly what is heard. The mouth follows the \
voice closely: the lips close on every m, b and p, open wide on the long vowels and rest in the pauses, where the \
person breathes in quietly through the nose. The eyes look straight into the camera with an attentive, lively \
expression and blink at the ends of the phrases; the eyebrows lift slightly on the words that are stressed, and the \
head nods a little with the rhythm of the speech. The shoulders rise and fall with the breath, and the clothes follow \
them in small folds. The camera is fixed on a tripod at eye level and frames the head and the upper body, as in the \
picture. The light is soft, comes from the front and does not change, and the background stays calm and slightly out \
of focus. Skin, hair and eyes keep their fine natural detail from the first moment to the last.

Dialogue:
<Person in the picture, English>: "Write here, word for word, what is said in the sound."

Background Sound:
<No prominent background sound>"""

BAKERY = """\
An elderly baker with a white apron, rolled-up sleeves and a grey moustache stands behind the wooden counter of a \
small old bakery early in the morning, and a young woman in a red raincoat stands in front of it with a basket over \
her arm. The camera films both from the side at chest height and moves very slowly towards them. Warm light from two \
hanging lamps falls on rows of dark loaves and on flour dust that drifts through the air, while the street behind the \
shop window is still blue and dim. The baker leans forward with both hands on the counter, raises his bushy eyebrows \
and speaks first, in a deep, slightly hoarse and kindly voice, tapping the crust of a loaf with one finger. The woman \
listens, tilts her head, laughs softly and answers in a bright voice, pointing at the loaf with an open hand. His \
moustache widens above a proud smile. The colours are golden and brown, the movements unhurried, the faces sharp and \
full of small lifelike detail."""

BAKERY_LINES = {
    "speaker_1": "Old baker with grey moustache",
    "language_1": "German",
    "words_1": "Guten Morgen! Das Brot ist noch ganz warm.",
    "speaker_2": "Young woman in red raincoat",
    "language_2": "German",
    "words_2": "Dann nehme ich gleich zwei davon.",
}
BAKERY_SOUND = "A quiet shop, the faint crackle of cooling bread crusts"

LIGHTHOUSE = """\
A bearded man of about fifty in a dark blue fisherman's jumper and a woollen cap stands on the gallery of a white \
lighthouse shortly before sunset. He rests one forearm on the iron railing, and the wind tugs at his collar and at a \
few grey curls below the cap. The camera stands a little below his eye level, frames him from the waist up on the \
right side of the picture and drifts slowly to the left, so that the coast opens behind him: cliffs with dry grass, \
white lines of surf and a sea of dark green under long clouds. Low golden light comes from the left, warms his face \
and leaves the other half in soft shadow. He looks out to the horizon with narrowed eyes, then turns his head to the \
camera; the corners of his mouth lift, and he speaks slowly in a rough, warm voice, pausing once to draw breath. Two \
gulls cross the sky far away. The picture is cinematic and rich in contrast, with fine structure in the wool, the \
beard and the weathered paint of the railing.

Dialogue:
<Bearded man in woollen cap, English>: "Every evening I think it cannot get any better. And then it does."

Background Sound:
<Wind and distant surf>"""

WORKSHOP = """\
The clip begins with the given picture and continues it in one calm shot. The person who is seen in it looks up from \
what lies before them, finds the camera and begins to talk about their work with quiet enthusiasm. The mouth moves \
clearly with each word, the eyes grow a little wider at the important ones, and small wrinkles appear beside them when \
the person smiles. One hand comes into the picture for a moment, opens towards the viewer to underline what is said, \
and sinks again. The head moves slightly from side to side, and the hair follows with a short delay. The camera keeps \
its place and its framing, and breathes only a little, as if it were held by a steady hand. The light, the colours and \
the objects around the person stay exactly as they are in the picture, and those in the distance remain softly out of \
focus. Skin, cloth and hair show their finest texture in high resolution, without any flicker, from the first frame to \
the last.

Dialogue:
<Person in the picture, French>: "Chaque détail compte, même ceux que personne ne voit."

Background Sound:
<The low hum of a quiet room>"""

SINGER = """\
A young singer with long curly hair, round glasses and an embroidered green jacket stands on a small wooden stage \
between two standing lamps with fringed shades. The style of the picture is that of an old illustrated children's \
book: soft outlines, warm paper texture, and colours as if they were laid on with a broad brush. The camera looks at \
her from the front, frames her from the knees up and moves back very slowly, until the dark heads of the first row of \
listeners come into view at the lower edge. She holds a small guitar close to her chest, looks down at the strings for \
a moment, then lifts her chin, smiles with half-closed eyes and speaks to the audience in a light, slightly breathy \
voice before the first note. Her fingers rest on the strings, her shoulders relax, and a lock of hair slides over her \
cheek when she leans forward. Dust glows in the cones of light from the lamps, and the red curtain behind her sways a \
little. All movement is gentle, and the drawing stays the same in every frame.

Dialogue:
<Young singer with round glasses, English>: "This one is for everybody who stayed up late."

Background Sound:
<A small audience in a quiet room, a soft guitar chord>"""

TRAIN_START = """\
A woman of about forty with a silver-grey bob and a long camel-coloured coat sits by the window of an old train \
compartment with green velvet seats. It is late afternoon in autumn; fields, bare poplars and a river slide past \
outside, and their shadows wander over her face and hands. The camera sits opposite her at eye level, frames her from \
the waist up on the right half of the picture and does not move except for the faint sway of the train. She holds a \
folded letter on her knees. First she looks out of the window, and the reflection of her face shows in the glass; then \
she lowers her eyes to the letter, smooths it with her thumb and begins to speak without looking up, in a low, \
thoughtful and clear voice. Her lips move calmly, and between the phrases she presses them together for a moment. The \
warm light of the low sun flickers on the brass of the luggage rack. The colours are those of old film, brown, green \
and gold, with fine grain and soft edges.

Dialogue:
<Woman with silver-grey hair, English>: "I have read it so often that I know it by heart."

Background Sound:
<The steady rattle of a train>"""

TRAIN_NEXT = """\
The shot goes on without a cut: the woman of about forty with the silver-grey bob and the camel-coloured coat still \
sits by the window of the train compartment with the green velvet seats, the folded letter on her knees. The camera \
remains opposite her at eye level with the same framing and the same faint sway. Now she lifts her head, turns away \
from the window and looks straight into the camera. Her eyes are bright, one eyebrow rises, and a smile that she tries \
to hold back comes and goes at the corners of her mouth. She folds the letter once more, slips it slowly into the \
inside pocket of her coat, lays her hand flat on the spot and goes on speaking in the same low and clear voice, a \
little warmer than before. Outside, the river ends and a dark wood begins, so that the light in the compartment grows \
softer and more even. The velvet, the brass and the wool of the coat keep their colours and their fine detail, and \
all her movements are slow and natural.

Dialogue:
<Woman with silver-grey hair, English>: "But only today do I understand what he meant."

Background Sound:
<The steady rattle of a train>"""

PONY = """\
A large yellow star bounces on the floor on a background that fades from teal to navy.

Background Sound:
<A low click at every touch of the floor>"""
