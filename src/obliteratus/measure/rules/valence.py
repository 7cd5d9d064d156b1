"""Words with a valence, written for this project: from 3 (delight) to −3 (horror), in English.

Forms that end in -s, -ed, -ing, -ly and the like are found by their stems; those that are not are
listed. Words that have a feeling only in some uses ("like", "cold", "kind") are weak or left out.
"""

_BY_VALENCE = {
    3.0: """
        adore amazing awesome beautiful bliss brilliant delicious delight delightful
        ecstatic enchanting excellent exquisite fabulous fantastic flawless glorious
        gorgeous heaven heavenly incredible joy joyful joyous jubilant magical magnificent
        marvellous marvelous masterpiece outstanding overjoyed perfect perfection phenomenal
        radiant spectacular splendid stunning sublime superb terrific thrilled triumph
        triumphant unforgettable wonderful wondrous
    """,
    2.0: """
        admire adorable affection applause beam beloved best blessed blissful bloom blossom
        bravo bright brighten celebrate celebration charm charming cheer cheerful cherish
        comfort comfortable comforting congratulations cosy cozy dazzling enchant enchanted
        enjoy enjoyable enthusiastic excited exciting favorite favourite festive fond
        friendly fun funny gem generous giggle glad glow grateful gratitude great grin
        happily happiness happy heartwarming hilarious hope hopeful hopefully hug impressive
        inspiring kindness laugh laughter love loved lovely lovingly lucky merry paradise
        pleasant pleased pleasure praise prize proud recommend refreshing relish satisfied
        shine shone smile smiled sparkle sparkling success successful sweet tasty thank
        thankful thanks thrill treasure treasured treat uplifting vibrant victory warmth
        welcoming win winner won wow yay yummy
    """,
    1.0: """
        agreeable better calm caring clean clever colorful colourful courteous crisp cuddle
        dance dancing ease easy elegant embrace fair fine free fresh friend friends gentle
        gift golden good graceful helpful interesting kind kindly light lively music nice
        peace peaceful play playful pretty quick quiet relax relaxed reliable rest rose
        roses safe sang sing smooth soft soothing spotless star stars sturdier sturdy
        sunlight sunny sunrise sunshine tender treats useful warm welcome well wise worth
        worthy
    """,
    -1.0: """
        abandoned absent alone anxious ashes awkward bare bitter blame bland bleak bored
        boring bother broke broken burn burned burnt careless chaos closed clumsy cold
        complain complaint confused cough crack cracked cramped crash crashed crooked
        crowded crumble damage damaged damp dark dead deaf death decay delay delayed demand
        die died difficult dim dirt dirty doubt dreary drip dull dust dying empty enemy
        expensive fade faded fail failed failure fault faulty fear fever flaw forgot
        forgotten frown funeral fuss gloom grave gray grey grumpy hard harsh hollow hoped
        hurt ill impossible jam kill lack late leak leaky lifeless limp lonely lose loss
        lost loud mess messy mistake mould moulding mourn mud muddy noisy odd overcooked
        pale poor problem queue rain raw regret rude rust rusty scratch shabby shiver shout
        sick sigh silence slow smell smelled smelly soaked sorrow sour stain stained stale
        sticky stiff stolen storm stuck suffer tangle tasteless tear tears tired tiring torn
        tough trouble ugly unfair unopened unread upset wait warn watery weak weary weed wet
        worn worried worry wrong
    """,
    -2.0: """
        abuse afraid aggressive anger angry annoy annoyed annoying appalling argue ashamed
        avoid awful bad badly betray betrayed collapse cries cruel cry crying danger
        dangerous depressed depressing despair desperate destroy destroyed disappoint
        disappointed disappointing disappointment disaster dishonest dislike dismal dismay
        distress dread dreadful exhausted fright frighten frightened frustrated frustrating
        furious garbage gloomy grief grieve grim gross guilt heartbroken helpless hopeless
        hostile humiliated humiliating inedible insult junk letdown loathe lousy mad
        miserable misery neglect nightmare offensive pain painful panic pathetic pity
        pointless poison poisoning poorly rage rancid rejected resent rotten rubbish ruin
        ruined sad sadly sadness scared scream shame shoddy sob soggy soulless spoil spoiled
        spoilt stench stink suffered suffering surly terrible terribly threat tragedy tragic
        trash unappreciated unbearable uncaring unfriendly unhappy unpleasant unwelcome
        upsetting useless vile violent waste weep wept worse worthless wound wounded wreck
        wretched
    """,
    -3.0: """
        abysmal agony atrocious catastrophe catastrophic despicable devastated devastating
        disgust disgusted disgusting excruciating hate hated hatred heartbreaking hell
        hideous horrendous horrible horrid horrific horrifying horror repulsive revolting
        sickening torment torture worst
    """,
}
VALENCE: dict[str, float] = {
    word: value for value, words in _BY_VALENCE.items() for word in words.split()
}
