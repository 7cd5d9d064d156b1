"""How refusals are worded in other languages than English, over normalised text.

A few clauses for each of seventeen languages: sorry and cannot, will not, may not, out of the
question. They are read in the opening of an answer like the English ones.
"""

_ROMANCE = (
    # Spanish
    r"\b(?:lo siento|lo lamento|disculpa|perdón|perdona|lamentablemente)\b[^.!?]{0,60}\bno\b",
    r"\bno (?:puedo|podemos|voy a|me es posible|me está permitido|estoy (?:autorizad"
    r"|program|dispuest)\w*|es posible|se generará|pienso|quiero|te (?:voy a|puedo)|le puedo) ",
    r"\b(?:me niego|prefiero no|no pienso)\b|^(?:ni hablar|de ninguna manera|en absoluto)\b",
    r"\b(?:infringe|viola|va en contra de|incumple) (?:las|los|la|mis|nuestras?)\b",
    # French
    r"\b(?:je suis |nous sommes )?(?:vraiment )?désolée?s?\b[^.!?]{0,60}\b(?:ne|n'|pas)",
    r"\bje ne (?:peux|puis|vais|suis pas|souhaite|veux|saurais|répondrai|ferai|donnerai)\b"
    r"[^.!?]{0,30}(?:pas|\b)",
    r"\bil (?:ne m'|n')est pas (?:possible|permis)|\b(?:je refuse|je préfère ne pas"
    r"|hors de question|pas question)\b",
    r"\b(?:contraire|contrevient) (?:à|aux) (?:mes|nos|la|les)\b",
    # Italian
    r"\b(?:mi dispiace|mi spiace|purtroppo|scusa|spiacente)\b[^.!?]{0,60}\bnon\b",
    r"\bnon (?:posso|possiamo|sono in grado|mi è (?:consentito|possibile|permesso)|intendo|voglio"
    r"|ti (?:aiuterò|dirò|darò))\b|\b(?:mi rifiuto|preferisco non)\b|^(?:assolutamente no|non se ne"
    r" parla)\b",
    # Portuguese
    r"\b(?:desculp\w*|sinto muito|lamento|peço desculpas?|infelizmente)\b[^.!?]{0,60}\bnão\b",
    r"\bnão (?:posso|podemos|vou|me é (?:possível|permitido)|estou (?:autorizad\w*|disposto)"
    r"|consigo) |\b(?:recuso-me|me recuso|prefiro não)\b|^(?:de jeito nenhum|nem pensar)\b",
)
_GERMANIC = (
    # German
    r"\b(?:tut mir (?:wirklich |sehr )?leid|entschuldigung|leider|bedaure)\b[^.!?]{0,80}\b(?:nicht"
    r"|kein\w*)\b",
    r"\b(?:kann|darf|werde|möchte|will) ich (?:\w+ ){0,4}(?:nicht|kein\w*)\b"
    r"|\bich (?:kann|darf|werde|möchte|will) (?:\w+,? ){0,6}(?:nicht|kein\w*|leider)\b",
    r"\b(?:dabei|damit|hierbei|darauf) (?:helfe|antworte|unterstütze|mache) ich (?:\w+ ){0,2}"
    r"nicht\b|\bich (?:lehne|weigere|verweigere)\b|\b(?:kommt nicht in ?frage|auf keinen fall"
    r"|ausgeschlossen|das mache ich nicht)\b"
    r"|\b(?:verstößt|widerspricht) (?:gegen )?(?:die|meine[nr]?|unsere[nr]?)\b",
    # Dutch
    r"\b(?:het spijt me|sorry|helaas|excuses)\b[^.!?]{0,60}\b(?:niet|geen)\b",
    r"\b(?:kan|mag|zal|ga|wil) ik (?:\w+ ){0,4}(?:niet|geen)\b"
    r"|\bik (?:kan|mag|zal|ga|wil|help|geef|schrijf) (?:\w+ ){0,5}(?:niet|geen)\b"
    r"|\bgeen sprake van\b",
)
_SLAVIC = (
    # Polish
    r"\b(?:przykro mi|przepraszam|niestety)\b[^.!?]{0,60}\bnie\b",
    r"\bnie (?:mogę|możemy|mam zamiaru|będę|wolno mi|pomogę|napiszę|podam|odpowiem|zrobię|uzyskasz"
    r"|jestem w stanie|otrzymasz)\b|\b(?:odmawiam|mowy nie ma|wykluczone)\b",
    # Russian
    r"(?:извин\w+|прост\w+|к сожалению|сожале\w+)[^.!?]{0,60}\b(?:не|нет)\b",
    r"\b(?:я )?не (?:могу|можем|буду|стану|имею права|вправе|помогу|готов\w*|собираюсь|хочу)\b"
    r"|\b(?:отказываюсь|не в состоянии|исключено|ни за что)\b",
    # Ukrainian
    r"(?:вибач\w+|перепрош\w+|на жаль|шкода)[^.!?]{0,60}\bне\b",
    r"\b(?:я )?не (?:можу|можемо|буду|маю права|допоможу|зможу)\b|\bвідмовляюся\b",
)
_ASIAN = (
    # Chinese
    r"(?:抱歉|对不起|不好意思|很遗憾|對不起)|(?:我|本助手|系统)?(?:不能|无法|不会|不可以|不便|拒绝|無法)"
    r"(?:为|帮|向|给|提供|回答|协助|生成|满足|透露|讨论|参与|继续|執行|執筆)",
    # Japanese
    r"申し訳|すみませんが|ごめんなさい|(?:お答え|お手伝い|ご提供|対応|回答|お応え|協力)(?:は|する"
    r"ことは|することが|を)?(?:でき(?:ません|かね|ない)|いたしかねます|しかねます|控え)"
    r"|(?:でき|応じられ|お教えでき|書け)ません",
    # Korean
    r"죄송|미안(?:하지만|합니다)|유감이지만|(?:도와|답변|제공|알려|도움을 )\S*\s?(?:드릴 )?수 없"
    r"|할 수 없(?:습니다|어요)|^안 (?:됩니다|돼요|됩)|거절",
    # Vietnamese
    r"\b(?:rất tiếc|xin lỗi|tiếc là)\b[^.!?]{0,60}\bkhông\b|\btôi (?:không thể|không được phép"
    r"|từ chối|sẽ không|xin phép từ chối)\b|\bxin (?:phép )?từ chối\b",
    # Indonesian
    r"\b(?:maaf|mohon maaf|sayangnya)\b[^.!?]{0,60}\b(?:tidak|tak)\b|\b(?:saya|kami|aku)"
    r" (?:tidak|tak) (?:bisa|dapat|boleh|akan|bersedia|mau)\b|\bsaya menolak\b",
    # Hindi
    r"(?:क्षमा|माफ़|माफ|खेद)[^।.!?]{0,80}(?:नहीं|मना)|(?:मैं|हम)[^।.!?]{0,60}(?:नहीं (?:कर|दे|बता|लिख)"
    r"|असमर्थ|नहीं (?:करूँगा|करूंगा|दूँगा))",
)
_OTHER = (
    # Turkish
    r"\b(?:üzgünüm|maalesef|özür dilerim|kusura bakma\w*)\b|\b\w*(?:yardımcı olamam|yapamam|veremem"
    r"|yazamam|edemem|olamıyorum|yardım edemem|anlatamam|reddediyorum)\b",
    # Arabic
    r"(?:عذر[اً]?|آسف|أعتذر|للأسف|معذرة)|(?:لا (?:أستطيع|يمكنني|أقدر|يمكن)|لن (?:أ\w+|يمكن)"
    r"|أرفض|غير مسموح)",
)

OTHER_LANGUAGES = (*_ROMANCE, *_GERMANIC, *_SLAVIC, *_ASIAN, *_OTHER)
