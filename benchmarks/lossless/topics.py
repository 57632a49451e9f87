"""Templates and topics of made prompts: 26 questions about each of 214 things."""

from __future__ import annotations

TEMPLATES = (
    ("qa", "What is the most important thing to know about {topic}?"),
    ("qa", "Why do people care about {topic}? Answer in two sentences."),
    ("qa", "Is it true that {topic} can be dangerous?"),
    ("explain", "Explain {topic} to a ten-year-old."),
    ("explain", "How does {topic} work?"),
    ("explain", "Give a short introduction to {topic} for a beginner."),
    ("list", "List five facts about {topic}."),
    ("list", "Give me seven ideas for a talk about {topic}, as a numbered list."),
    ("list", "What are the advantages and disadvantages of {topic}?"),
    ("howto", "I want to learn about {topic}. Give me a plan for one week, day by day."),
    ("howto", "What mistakes do people make with {topic}, and how can they be avoided?"),
    ("story", "Write a short story about {topic}."),
    ("story", "Tell me a funny anecdote that involves {topic}."),
    ("poem", "Write a poem of eight lines about {topic}."),
    ("dialogue", "Write a dialogue between a teacher and a student about {topic}."),
    ("dialogue", "Interview an expert on {topic}: three questions with answers."),
    ("email", "Write a polite email that invites a friend to an evening about {topic}."),
    ("email", "Write a letter to a newspaper that complains about {topic}."),
    ("code", "Write a Python class that stores facts about {topic}, with a method that prints them."),
    ("code", "Write an HTML page with a heading, a paragraph and a list about {topic}."),
    ("data", "Give three facts about {topic} as a JSON array of objects with the keys title and text."),
    ("data", "Make a Markdown table about {topic} with three rows and the columns name, use and example."),
    ("quiz", "Write three multiple-choice questions about {topic}, each with its answer."),
    ("rewrite", "Rewrite this in formal English: hey, did u know how cool {topic} is? i could talk abt it all day"),
    ("advert", "Write a slogan and a short advertisement for a museum of {topic}."),
    ("opinion", "Argue for and against this claim: every school should teach {topic}."),
)
"""Kind of text and template."""

TOPICS = tuple(
    line.strip()
    for line in """
    volcanoes; the water cycle; honey bees; black holes; the French Revolution; chess; photosynthesis; sourdough
    bread; electric cars; the human heart; jazz music; earthquakes; the Roman Empire; penguins; solar panels;
    coffee; vaccines; the stock market; origami; glaciers; Shakespeare; machine learning; the immune system; tea
    ceremonies; bridges; the Great Wall of China; dinosaurs; gardening; the periodic table; football; mountain
    climbing; coral reefs; the printing press; wolves; wind turbines; chocolate; sleep; inflation; calligraphy;
    rivers; Greek mythology; databases; antibiotics; fermentation; skyscrapers; ancient Egypt; octopuses;
    composting; gravity; swimming; deserts; rainforests; the telephone; elephants; nuclear power; olive oil; memory;
    taxes; photography; lakes; fairy tales; computer networks; the brain; cheese; castles; the Vikings; sharks;
    beekeeping; magnetism; tennis; polar exploration; tides; the steam engine; owls; batteries; spices; stress;
    insurance; painting; islands; detective novels; encryption; bones; noodles; lighthouses; the Silk Road;
    butterflies; recycling; light; cycling; caves; hurricanes; radio; horses; biofuels; potatoes; habits; budgeting;
    sculpture; waterfalls; science fiction; operating systems; blood; soup; cathedrals; the Renaissance; spiders;
    urban farming; sound; running; canyons; fog; the bicycle; cats; hydropower; rice; motivation; mortgages; opera;
    wetlands; haiku; web design; vitamins; barbecue; tunnels; the Industrial Revolution; ants; water conservation;
    electricity; basketball; meteorites; lightning; the compass; dogs; geothermal energy; apples; teamwork; small
    businesses; ballet; the ocean floor; comics; spreadsheets; diabetes; ice cream; dams; the moon landing;
    dolphins; public transport; friction; yoga; comets; snow; clocks; parrots; hydrogen; tomatoes; public speaking;
    trade; theatre; savannas; biographies; robots; allergies; pancakes; airports; the Cold War; whales; paper;
    probability; sailing; the planet Mars; rainbows; glass; turtles; waste management; garlic; negotiation; interest
    rates; film music; steppes; riddles; video games; first aid; breakfast; libraries; the Aztecs; bats; fashion;
    fractions; skiing; the Sun; clouds; mirrors; frogs; noise; salt; leadership; pensions; folk dance; peninsulas;
    diaries; drones; teeth; picnics; museums; the Olympic Games; hedgehogs; plastic; prime numbers; fishing;
    telescopes; monsoons; maps; camels
    """.replace("\n", " ").split(";")
)
"""What templates ask about."""
