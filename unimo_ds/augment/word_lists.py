"""Small closed lists of frequent caption words: what no corpus of modest size can teach.

They hold without WordNet. A word may stand in several groups.
"""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def _groups(*lines: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(word.strip() for word in line.split(",")) for line in lines)


NOUN_SYNONYMS = _groups(
    "bike, bicycle",
    "motorcycle, motorbike",
    "plane, airplane, aeroplane, aircraft",
    "car, automobile, auto",
    "couch, sofa",
    "tv, television",
    "photo, photograph",
    "picture, image",
    "phone, telephone",
    "kid, child",
    "man, guy",
    "woman, lady",
    "street, road",
    "meadow, field, grassland",
    "sea, ocean",
    "seaside, seashore, shore, coast",
    "rock, stone",
    "laptop, notebook",
    "refrigerator, fridge",
    "stove, cooker",
    "flower, blossom",
    "purse, handbag",
    "grey, gray",
    "background, backdrop",
    "dark, darkness, night",
    "film, movie",
    "shop, store",
    "lorry, truck",
    "forest, woods, wood",
    "rug, carpet",
    "drawing, sketch",
    "thing, object, item",
)
"""Nouns that say the same of a picture."""

MALE_NOUNS = words("man guy boy gentleman male father dad husband son brother king prince waiter businessman fireman policeman")
FEMALE_NOUNS = words("woman lady girl female mother mom wife daughter sister queen princess waitress bride ballerina")
PERSON_NOUNS = (
    MALE_NOUNS
    | FEMALE_NOUNS
    | words("""
        person people someone somebody kid child toddler baby infant adult teenager youth player batter catcher pitcher umpire
        skier snowboarder surfer skater skateboarder rider cyclist biker driver passenger pedestrian worker officer police
        policeman soldier chef cook doctor nurse teacher student tourist visitor customer farmer astronaut cameraman
        photographer dancer singer musician family friend crowd
        """)
)
"""Nouns of people: two of them may name one person unless one is a man's and one a woman's."""

NOUN_LOOKALIKES = _groups(
    "bike, bicycle, motorcycle, motorbike, scooter, moped, cycle",
    "car, vehicle, taxi, cab, van, suv, sedan, jeep, minivan",
    "truck, van, pickup, lorry, trailer, vehicle",
    "bus, trolley, coach, tram, vehicle",
    "train, locomotive, engine, tram, trolley, subway, railcar",
    "boat, ship, yacht, sailboat, canoe, kayak, rowboat, ferry, raft, vessel",
    "plane, airplane, aeroplane, aircraft, jet, airliner, jetliner",
    "couch, sofa, loveseat, settee, futon",
    "chair, stool, seat, armchair, recliner, bench, rocker",
    "table, desk, counter, countertop, workbench, stand",
    "cup, mug, teacup, beverage, drink",
    "coffee, espresso, cappuccino, latte, beverage, drink, cup",
    "plate, dish, saucer, platter, tray, bowl",
    "bag, backpack, purse, suitcase, luggage, handbag, baggage, briefcase, sack, tote",
    "box, carton, crate, package, container, case",
    "street, road, avenue, highway, path, lane, roadway, pavement, intersection, driveway, alley",
    "sidewalk, path, pavement, walkway, street",
    "rock, stone, boulder, pebble, cliff",
    "sea, ocean, water, lake, river, pond, pool, bay, wave, stream, harbor, harbour",
    "beach, shore, coast, sand, seaside, seashore, shoreline, coastline, sea, ocean",
    "hill, mountain, slope, hillside, mountainside, cliff, ridge",
    "field, meadow, grass, lawn, pasture, grassland, park, yard, garden, grassy, farm, countryside, plain",
    "forest, wood, woods, tree, jungle",
    "snow, slope, ice, winter",
    "tower, building, house, skyscraper, pagoda, structure, church, temple, clocktower, steeple",
    "house, building, home, cottage, cabin, shed, barn, hut",
    "room, bedroom, living room, kitchen, bathroom, office, home, house, indoors, inside, interior, wall, background, backdrop",
    "office, room, classroom, library, hall, indoors",
    "restaurant, bar, cafe, room, hall, kitchen, home, indoors",
    "museum, store, shop, market, station, airport, room, hall, indoors",
    "city, town, village, street, road, park, market, station, countryside, sidewalk, outdoors",
    "stadium, court, field, playground, park, outdoors",
    "forest, mountain, hill, valley, river, lake, countryside, park, outdoors",
    "snow, mountain, ice, slope, hill, outdoors",
    "snow, field, meadow, grassland, park, garden, yard, road, street",
    "zoo, park, farm, field, garden, yard, outdoors",
    "desert, beach, sand, outdoors",
    "sea, ocean, beach, harbor, harbour, outdoors",
    "meadow, outdoors",
    "tree, plant, bush, shrub, leaf, branch, foliage",
    "flower, plant, blossom, bloom, bouquet, dahlia, rose, petal",
    "vase, pot, jar, pitcher, jug",
    "bottle, jar, flask, container",
    "clock, watch, timer",
    "lamp, light, lantern, streetlight, lamppost, bulb",
    "sign, signboard, billboard, poster, banner, placard",
    "picture, photo, photograph, painting, poster, drawing, portrait, frame, image",
    "phone, cellphone, smartphone, cell phone, mobile phone, telephone, device",
    "laptop, computer, notebook, pc, laptop computer, macbook",
    "monitor, screen, display, television, tv, computer",
    "controller, remote, wii, wiimote, remote control",
    "cake, pastry, dessert, pie, cupcake, muffin, bread, donut, doughnut, cookie",
    "sandwich, burger, hamburger, hot dog, hotdog, sub, bun",
    "meal, food, dinner, lunch, breakfast, dish, snack",
    "vegetable, veggie, broccoli, carrot, salad, lettuce, green",
    "fruit, apple, orange, banana, pear, peach, lemon, grape",
    "hat, cap, helmet, beanie, hood, visor",
    "coat, jacket, sweater, shirt, sweatshirt, hoodie, vest, suit, blazer, uniform, clothes, clothing, outfit",
    "pants, jeans, trousers, shorts, suit, uniform, clothes, clothing, outfit",
    "dress, skirt, gown, clothes, clothing, outfit",
    "shoe, boot, sneaker, sandal, footwear",
    "glasses, glass, sunglasses, goggles, eyeglasses, spectacles",
    "glass, cup, tumbler, goblet",
    "rug, carpet, mat, floor",
    "flag, banner, pennant",
    "kid, child, boy, toddler, baby, infant, youngster",
    "kid, child, girl, toddler, baby, infant, youngster",
    "cow, bull, calf, cattle, ox, steer, animal",
    "sheep, lamb, ram, goat",
    "horse, pony, colt, foal, mare, donkey, mule",
    "dog, puppy, pup, doggie, terrier, animal, pet",
    "cat, kitten, kitty, feline, tabby, animal, pet",
    "bird, pigeon, gull, seagull, duck, goose, parrot",
    "bear, cub, teddy, teddy bear",
    "fence, railing, gate, barrier, wall",
    "wall, background, backdrop, building",
    "star, galaxy, dot, point, light",
    "space, sky, universe",
    "snowboard, ski, board, skateboard, surfboard, sled",
    "racket, racquet, bat, paddle",
    "ball, baseball, football, frisbee",
    "towel, cloth, napkin, blanket, tablecloth",
    "bed, mattress, bunk, cot",
    "pillow, cushion",
    "cabinet, cupboard, shelf, drawer, dresser, closet, bookcase, bookshelf",
    "oven, stove, microwave, cooker, range",
    "sink, basin, tub, bathtub",
    "toilet, urinal, commode",
    "book, magazine, notebook, journal, novel",
    "rocket, shuttle, spacecraft, space shuttle, spaceship, missile",
    "kite, parachute, parasail, glider",
    "umbrella, parasol, canopy",
    "drum, drum kit, barrel",
    "king, queen, prince, princess",
    "coin, money",
    "city, town, village, building, street, skyline",
    "fire hydrant, hydrant",
    "parking meter, meter",
    "spoon, fork, knife, utensil, silverware, cutlery",
    "knife, sword, blade, dagger",
    "camera, camcorder, tripod",
)
"""Nouns that two people may choose for one and the same thing; WordNet has many of them as mere sisters."""

FRAME_NOUNS = words("""
    picture image photo photograph scene view drawing sketch painting portrait illustration snapshot shot close-up closeup
    close thing object item something anything everything nothing one other another piece part side front back top bottom
    left right middle center centre end edge corner foreground distance area place position spot way
    direction row line pair couple group bunch set lot number kind type sort variety collection assortment series hundred
    thousand dozen range amount style shape size color colour rest half total inside outside display example version
    point dot foot head base body figure horizon bloom mark look launch work use time moment
    """)
"""Nouns that frame, place or measure what is seen: never replaced, never a replacement, never a reason."""

SETTING_NOUNS = words("""
    meadow field grassland pasture lawn park garden yard beach shore coast seaside seashore sea ocean lake river pond water
    snow ice desert forest woods jungle mountain hill hillside slope valley street road highway sidewalk city town
    village countryside farm room bedroom kitchen bathroom office restaurant cafe bar hall classroom library museum store
    shop market station airport runway stadium court zoo harbor harbour parking-lot playground space sky grass sand
    wall background backdrop weather rain fog storm indoors outdoors home interior exterior
    """)
"""Nouns of the place where a scene happens, which a caption often leaves out."""

TIME_NOUNS = words("""
    day night evening morning noon afternoon dusk dawn sunset sunrise twilight midnight dark darkness daylight sunlight
    sunshine moonlight shade summer winter spring autumn fall year season weekend
    """)
"""Nouns of time and light: they go with any place."""

COMMON_NOUNS = words("""
    person people man woman someone somebody hand arm leg head face eye ear nose mouth hair neck finger chest back lap foot
    shoulder body skin fur tail wing wall floor ceiling ground air sky light shadow window door leaf grass shirt pants
    clothes clothing outfit shoe sock sleeve pocket button collar surface material cloth wood metal glass plastic paper
    water dirt dust cloud sun tree plant sand
    """)
"""What many a picture shows though no caption says so: never put in as a replacement, never a reason by its absence."""

NUMBER_WORDS: dict[str, int] = {
    word: number
    for number, word in enumerate(
        ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
}

COLOURS = words("""
    red blue green yellow orange purple violet pink brown black white grey gray silver gold golden beige tan turquoise teal
    maroon navy crimson cyan magenta lavender cream blond blonde ginger amber ivory bronze
    """)
_SHADES = _groups(
    "blue, navy, turquoise, teal, cyan",
    "green, teal, turquoise, cyan",
    "red, maroon, crimson, magenta, ginger, pink",
    "orange, ginger, amber, gold, golden, bronze, red",
    "brown, tan, beige, amber, bronze, ginger, maroon, golden, orange",
    "purple, violet, lavender, magenta, pink, maroon",
    "white, cream, ivory, beige, silver",
    "grey, gray, silver",
    "yellow, gold, golden, blond, blonde, amber, cream, orange",
    "blond, blonde, golden, brown, ginger, tan, beige",
    "black, navy",
)

MATERIALS = words("wooden wood metal metallic steel iron brick stone concrete marble plastic leather glass paper")

ADJECTIVE_SYNONYMS = _groups(
    "small, little, tiny",
    "large, big, huge",
    "grey, gray",
    "checked, checkered, chequered",
    "striped, stripy",
    "wooden, wood",
    "metal, metallic",
    "elderly, old",
    "blond, blonde",
    "golden, gold",
)
"""Adjectives that say the same of a picture."""

SIZES = words("small little tiny large big huge")
"""Sizes that any thing may have, as it may any of the colours."""

EXCLUSIVE_ADJECTIVES: tuple[tuple[frozenset[str], ...], ...] = (
    _groups("small, little, tiny, miniature, mini", "large, big, huge, giant, enormous, gigantic, massive"),
    _groups("young, youthful", "old, elderly, aged"),
    _groups("new, modern, brand-new", "old, ancient, antique, vintage"),
    _groups("tall, high", "short, low"),
    _groups("long", "short"),
    _groups("wide, broad", "narrow"),
    _groups("thick", "thin"),
    _groups("open, opened", "closed, shut"),
    _groups("empty", "full, filled, crowded, packed"),
    _groups("wet, soaked", "dry"),
    _groups("hot, steaming", "cold, frozen, icy"),
    _groups("clean", "dirty, muddy, messy"),
    _groups("dark, dim", "light, bright, sunlit, lit, pale"),
    _groups("sunny, clear", "cloudy, overcast, gray, grey", "rainy", "snowy", "foggy"),
    _groups("round, circular", "square, rectangular", "triangular"),
    _groups("male", "female"),
    _groups("striped, stripy", "checked, checkered, chequered, plaid", "spotted, polka-dot, dotted", "plain, solid"),
    _groups("wooden, wood", "metal, metallic, steel, iron", "brick", "concrete", "plastic", "leather", "marble"),
    _groups("happy, smiling, laughing", "sad, crying", "angry"),
    _groups("awake", "asleep, sleeping"),
    _groups("straight", "curly, wavy, curved, bent"),
    _groups("smooth", "rough"),
    _groups("shallow", "deep"),
    _groups("heavy", "light"),
    _groups("front", "back, rear"),
    _groups("left", "right"),
    _groups("indoor", "outdoor"),
    _groups("whole", "half, sliced, cut, broken"),
)
"""Dimensions of which a thing has one value; the words of one value count as similar."""

ADJECTIVE_LOOKALIKES = (
    *_SHADES,
    *(value for dimension in EXCLUSIVE_ADJECTIVES for value in dimension),
    *_groups(
        "checked, striped, plaid, patterned, tiled", "bright, sunny, clear, snowy", "golden, yellow, shiny, bronze, brass"
    ),
)
"""Adjectives that two people may choose for one look."""
