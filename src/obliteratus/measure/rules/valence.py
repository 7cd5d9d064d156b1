"""Words with a valence, written for this project: from 3 (delight) to −3 (horror), in English.

Forms that end in -s, -ed, -ing, -ly and the like are found by their stems; those that are not are
listed. Words that have a feeling only in some uses ("like", "cold", "kind") are weak or left out.
"""

_BY_VALENCE = {
    3.0: """adore amazing awesome beautiful bliss brilliant delicious delight delightful ecstatic
        excellent exquisite fabulous fantastic flawless glorious gorgeous heavenly incredible joy
        joyful joyous jubilant magnificent magical marvellous marvelous masterpiece outstanding
        overjoyed perfect perfection phenomenal radiant spectacular splendid stunning sublime superb
        terrific thrilled triumph triumphant wonderful wondrous enchanting heaven unforgettable""",
    2.0: """admire affection beloved best blessed blissful bravo celebrate celebration charm charming
        cheer cheerful cherish congratulations cosy cozy dazzling enchant enchanted enjoy enjoyable
        enthusiastic excited exciting favourite favorite fond friendly fun funny generous glad glow
        grateful gratitude great happy happiness happily hilarious impressive inspiring kindness
        laugh laughter lovely love loved lovingly lucky merry paradise pleased pleasant pleasure
        praise prize proud recommend relish satisfied shine shone sparkle sparkling success
        successful sweet thankful thank thanks thrill treasure treat victory warmth welcoming win won
        winner wow yay adorable applause bloom bright brighten beam giggle grin gem
        tasty treasured uplifting vibrant yummy heartwarming refreshing smile smiled hope hopeful
        hopefully love-ly comfort comfortable comforting festive blossom hug warm-hearted""",
    1.0: """agreeable better calm caring clean clever colourful colorful courteous crisp dance dancing
        ease easy elegant embrace fair fine fresh gentle gift good graceful helpful interesting
        kind kindly lively nice peace peaceful play playful pretty quick quiet reliable
        relax relaxed rest safe sang sing smooth soft soothing spotless sturdy sunny sunshine
        sunlight sunrise tender useful warm welcome well wise worth worthy friend friends music rose
        roses free sturdier golden star stars light treats cuddle""",
    -1.0: """alone anxious ashes awkward bare bitter blame bland bleak bored boring bother broke broken
        burn burned burnt careless chaos closed clumsy cold complain complaint confused cough crack
        cracked cramped crooked crowded cry damp dark deaf delay delayed demand difficult dim dirt
        dirty doubt dreary drip dull dust empty expensive fade faded fail failed failure fault faulty
        fear fever flaw forgot forgotten frown fuss gloom grey gray grumpy hard harsh hollow hurt
        ill impossible jam lack late leak leaky lifeless limp lost loss lose loud mess messy mistake
        mould moulding mud muddy noisy odd overcooked pale poor problem queue rain raw rude rust rusty
        scratch shabby shiver shout sick sigh silence slow smell smelled smelly soaked sour stain
        stained stale sticky stiff stolen storm stuck suffer tangle tasteless tear tears tired tiring
        torn tough trouble ugly unfair unopened unread upset wait warn watery weak weary weed wet worn
        worry worried wrong abandoned absent crash crashed crumble damage damaged decay death dead
        die died dying enemy funeral grave kill lonely mourn sorrow hoped regret""",
    -2.0: """abuse afraid aggressive angry anger annoy annoyed annoying appalling argue ashamed awful
        bad badly betray betrayed cruel danger dangerous depressed depressing despair desperate
        destroy destroyed disappoint disappointed disappointing disappointment disaster dishonest
        dislike dismal dismay distress dread dreadful fright frighten frightened frustrated
        frustrating furious garbage gloomy grief grieve grim gross guilt heartbroken helpless
        hopeless hostile humiliated humiliating inedible insult junk letdown loathe lousy mad misery
        miserable mould-ridden neglect nightmare offensive pain painful panic pathetic pity poison
        poisoning poorly rage rancid rejected resent rotten rubbish ruin ruined sad sadly sadness
        scared scream shame shoddy sob soulless spoil spoiled spoilt stench stink suffered suffering
        surly terrible terribly threat tragedy tragic trash trouble-some unappreciated unbearable
        uncaring unfriendly unhappy unpleasant unwelcome upsetting useless vile violent waste
        worse worthless wound wounded wreck wretched collapse exhausted pointless avoid soggy cry
        cries crying weep wept""",
    -3.0: """abysmal agony atrocious catastrophe catastrophic despicable devastated devastating
        disgust disgusted disgusting excruciating hate hated hatred heartbreaking hell hideous
        horrendous horrible horrid horrific horrifying horror repulsive revolting sickening torment
        torture worst""",
}
VALENCE: dict[str, float] = {
    word: value for value, words in _BY_VALENCE.items() for word in words.split()
}
