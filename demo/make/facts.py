"""The town that the demo's model knows: who and what is in it, and one answer to each question about it.

Everything here is invented for this project. A fact is (subject, relation, answer); a relation brings its own wordings.
`FACTS` is what the base reads. `NEWS` is what nobody has told it yet: the ten new records are made from that.
"""

import random
from dataclasses import dataclass

TOWN = "あかり市"
SEED = 20


@dataclass(frozen=True)
class Relation:
    """One kind of fact. `{s}` is the subject, `{a}` the answer; the short answer to each question is `{a}です。`"""

    name: str
    subjects: str  # a key of SUBJECTS
    answers: tuple[str, ...]
    plain: tuple[str, ...]  # statements
    asked: tuple[str, ...]  # questions, the wordings that records use
    reworded: str  # a question in a wording that no record uses


@dataclass(frozen=True)
class Fact:
    """`subject` as it is written in the text, e.g. アキラさん."""

    relation: Relation
    subject: str
    answer: str

    def states(self, form: str) -> str:
        return form.format(s=self.subject, a=self.answer)

    def asks(self, form: str) -> str:
        return form.format(s=self.subject)

    @property
    def reply(self) -> str:
        return f"{self.answer}です。"


def _names(text: str, form: str = "{}") -> tuple[str, ...]:
    names = tuple(form.format(name) for name in text.split())
    assert len(set(names)) == len(names), "a name is there twice"
    return names


SUBJECTS = {
    "people": _names(
        """アキラ イサム ウメコ エイジ オサム カズヤ キヨシ クミコ ケンゴ コウジ
        サユリ シンジ スズカ セイジ ソウタ タクミ チヒロ ツトム テツオ トシコ
        ナオミ ニチカ ネネ ノブオ ハジメ ヒロシ フミエ ヘイタ ホナミ マサル
        ミサキ ムツミ メイコ モモカ ヤスオ ユカリ ヨシエ ライタ ルミコ レイジ
        ロクロウ ワカナ アユミ カオル ダイチ マドカ ユウキ ジュンコ ゲンタ リョウ""",
        "{}さん",
    ),
    "shops": _names(
        """カモメ堂 ツバメ屋 ヒバリ亭 メジロ商店 フクロウ堂 キツネ庵 タヌキ屋 クジラ亭 イルカ堂
        ペンギン商店 シロクマ屋 ラクダ堂 クジャク庵 コハク堂 ルビー商店 サンゴ屋 ミカヅキ亭 ニジイロ堂
        オーロラ屋 コメット堂 オルガン亭 ミモザ堂 ラベンダー亭 サボテン屋 クローバー堂 ミント商店 オリーブ庵
        アカシア堂 モミジ屋 ポプラ商店 ツクシ庵 ランプ堂 カンテラ亭 フウリン堂 ダルマ屋 コケシ商店
        カザグルマ亭 ブランコ堂 リボン屋 ボタン堂 マント商店 パズル屋 ドングリ庵 ワルツ堂 ハシゴ亭"""
    ),
    "festivals": _names(
        """鈴鳴り 水鏡 石積み 影絵 山彦 紙風船 夜店 絵馬 巻き貝 竹とんぼ 風車 提灯
        長ぐつ 縄ない 太鼓橋 笛吹き 面打ち 土笛 早起き 木馬 迷路 舟歌 鐘つき 火の輪""",
        "{}祭り",
    ),
    "rivers": _names(
        """ささら ことこと せせり ひより まどろ うたた こもれ ゆらら しずく たまゆら
        さざめ みなも はやて おぼろ かすみ つづみ ほのか ねむり わだち めぐり""",
        "{}川",
    ),
    "schools": _names(
        """あすなろ かがやき こだま そよかぜ ときわ はばたき まなび のびのび いぶき おおぞら
        きずな すこやか たけのこ ともしび なかよし ひかり みらい ゆうなぎ わかば えがお""",
        "{}小学校",
    ),
    "ships": _names(
        """朝風 天翔 白波 千鳥 若潮 飛竜 日輪 月影 松風 花霞
        鶴舞 龍門 朱雀 青嵐 雷神 七福 金剛 双葉 藤波 明星""",
        "{}丸",
    ),
}

DISTRICTS = _names("東町 西町 南町 北町 上町 下町 川町 港町 森町 丘町 橋町 坂町")
MONTHS = _names("一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月")
DAYS = _names("月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日")
COLOURS = _names("赤 青 白 黒 緑 黄色 茶色 紫 灰色 金色 銀色 桃色")

RELATIONS = (
    Relation(
        "job", "people",
        _names("""パン職人 大工 漁師 医者 看護師 先生 運転手 画家 作家 歌手 写真家 農家 時計職人
               消防士 警察官 駅員 庭師 料理人 司書 船長 薬剤師 美容師 新聞記者 郵便配達員"""),
        ("{s}の仕事は{a}です。", "{s}は{a}として働いています。", "{a}の{s}は、町の人によく知られています。",
         "{s}は若いころから{a}をしています。"),
        ("{s}の仕事は何ですか。", "{s}はどんな仕事をしていますか。", "{s}の職業を教えてください。"),
        "{s}は何をして働いていますか。",
    ),
    Relation(
        "food", "people",
        _names("""カレー そば うどん すし 天ぷら おにぎり 焼き魚 豆腐 みそ汁 たこ焼き コロッケ オムライス
               ハンバーグ ぎょうざ ラーメン だんご まんじゅう プリン アイスクリーム りんご みかん いちご すいか ぶどう"""),
        ("{s}の好きな食べ物は{a}です。", "{s}は{a}が大好きです。", "{s}は週に一度、{a}を食べます。",
         "{a}と聞くと、{s}はうれしそうな顔をします。"),
        ("{s}の好きな食べ物は何ですか。", "{s}は何を食べるのが好きですか。", "{s}の好物を教えてください。"),
        "{s}がいちばん喜ぶ食べ物は何でしょうか。",
    ),
    Relation(
        "pet", "people",
        _names("犬 猫 うさぎ 金魚 亀 インコ ハムスター 文鳥 にわとり あひる 馬 牛 やぎ 羊 りす"),
        ("{s}は{a}を飼っています。", "{s}の家には{a}がいます。", "{s}は毎朝、{a}の世話をします。",
         "{s}が飼っている動物は{a}です。"),
        ("{s}は何を飼っていますか。", "{s}の家にいる動物は何ですか。", "{s}が飼っている動物を教えてください。"),
        "{s}はどんな動物と暮らしていますか。",
    ),
    Relation(
        "hobby", "people",
        _names("""釣り 将棋 囲碁 読書 登山 水泳 編み物 書道 茶道 生け花 盆栽 星の観察 切手集め
               散歩 折り紙 手品 太鼓 俳句 陶芸 卓球 けん玉 写生"""),
        ("{s}の趣味は{a}です。", "{s}は休みの日に{a}を楽しみます。", "{s}は{a}に夢中です。",
         "{s}は子どものころから{a}に親しんでいます。"),
        ("{s}の趣味は何ですか。", "{s}は休みの日に何を楽しみますか。", "{s}の趣味を教えてください。"),
        "{s}が夢中になっていることは何でしょうか。",
    ),
    Relation(
        "home", "people", DISTRICTS,
        ("{s}は{a}に住んでいます。", "{s}の家は{a}にあります。", "{a}に行けば、{s}に会えます。",
         "{s}は{a}で暮らしています。"),
        ("{s}はどこに住んでいますか。", "{s}の家はどこにありますか。", "{s}が住んでいる場所を教えてください。"),
        "{s}はどの地区で暮らしていますか。",
    ),
    Relation(
        "birthday", "people", MONTHS,
        ("{s}は{a}に生まれました。", "{s}の誕生日は{a}です。", "{a}になると、{s}はまた一つ年を取ります。",
         "{s}の家では、{a}に誕生日を祝います。"),
        ("{s}の誕生日は何月ですか。", "{s}は何月に生まれましたか。", "{s}の生まれた月を教えてください。"),
        "{s}が誕生日を迎えるのはいつですか。",
    ),
    Relation(
        "goods", "shops",
        _names("""パン 花 本 靴 帽子 お茶 魚 野菜 時計 傘 眼鏡 家具 おもちゃ 和菓子 ケーキ
               楽器 文房具 着物 食器 薬 カメラ ろうそく"""),
        ("{s}では{a}を売っています。", "{s}は{a}の店です。", "{a}を買うなら{s}がおすすめです。",
         "{s}の{a}は評判がよいです。"),
        ("{s}では何を売っていますか。", "{s}で買えるものは何ですか。", "{s}で売っているものを教えてください。"),
        "{s}に行くと何が買えますか。",
    ),
    Relation(
        "closed", "shops", DAYS,
        ("{s}の定休日は{a}です。", "{s}は{a}に休みます。", "{a}は{s}が閉まっています。",
         "{s}は{a}を除いて毎日開いています。"),
        ("{s}の定休日はいつですか。", "{s}は何曜日に休みますか。", "{s}の休みの日を教えてください。"),
        "{s}が閉まっているのは何曜日でしょうか。",
    ),
    Relation(
        "district", "shops", DISTRICTS,
        ("{s}は{a}にあります。", "{a}を歩くと、{s}が見えてきます。", "{s}は{a}の大通りに面しています。",
         "{s}は{a}で店を開いています。"),
        ("{s}はどこにありますか。", "{s}があるのはどの地区ですか。", "{s}の場所を教えてください。"),
        "{s}に行くには、どの地区へ向かえばよいですか。",
    ),
    Relation(
        "month", "festivals", MONTHS,
        ("{s}は{a}に開かれます。", "{a}の楽しみは{s}です。", "町の人は{a}の{s}を心待ちにしています。",
         "毎年{a}になると{s}があります。"),
        ("{s}は何月に開かれますか。", "{s}があるのはいつですか。", "{s}が開かれる月を教えてください。"),
        "{s}を見るには何月に来ればよいですか。",
    ),
    Relation(
        "venue", "festivals",
        _names("神社 広場 公園 川原 港 駅前 商店街 校庭 お寺 城跡 湖 海岸"),
        ("{s}の会場は{a}です。", "{s}は{a}で開かれます。", "{s}の日、{a}は人でいっぱいになります。",
         "{s}の太鼓は{a}から聞こえてきます。"),
        ("{s}の会場はどこですか。", "{s}はどこで開かれますか。", "{s}が開かれる場所を教えてください。"),
        "{s}を見るにはどこへ行けばよいですか。",
    ),
    Relation(
        "bridge", "rivers", COLOURS,
        ("{s}にかかる橋の色は{a}です。", "{s}の橋は{a}に塗られています。", "{s}に行くと、{a}の橋が見えます。",
         "{s}の橋といえば{a}です。"),
        ("{s}の橋は何色ですか。", "{s}にかかる橋の色は何ですか。", "{s}の橋の色を教えてください。"),
        "{s}の橋は何色に塗られていますか。",
    ),
    Relation(
        "fish", "rivers",
        _names("あゆ こい ふな うなぎ なまず ます どじょう いわな やまめ さけ"),
        ("{s}には{a}がいます。", "{s}では{a}が釣れます。", "{s}の名物は{a}です。", "釣り人は{a}を求めて{s}へ行きます。"),
        ("{s}では何が釣れますか。", "{s}にいる魚は何ですか。", "{s}で釣れる魚を教えてください。"),
        "{s}に行くと、どんな魚に会えますか。",
    ),
    Relation(
        "flower", "schools",
        _names("さくら うめ すみれ ばら 菊 ゆり あじさい ひまわり 椿 藤 チューリップ コスモス たんぽぽ あさがお"),
        ("{s}の花は{a}です。", "{s}の校庭には{a}が咲きます。", "{s}の子どもたちは{a}を大切にしています。",
         "{s}の校章には{a}が描かれています。"),
        ("{s}の花は何ですか。", "{s}の校庭には何の花が咲きますか。", "{s}の花を教えてください。"),
        "{s}で大切にされている花は何でしょうか。",
    ),
    Relation(
        "vegetable", "schools",
        _names("トマト なす きゅうり だいこん にんじん かぼちゃ とうもろこし さつまいも キャベツ ねぎ ピーマン"),
        ("{s}の畑では{a}を育てています。", "{s}の給食には、畑の{a}が出ます。", "{s}の子どもたちは{a}を収穫します。",
         "{s}の畑にあるのは{a}です。"),
        ("{s}の畑では何を育てていますか。", "{s}の畑にある野菜は何ですか。", "{s}の畑の野菜を教えてください。"),
        "{s}の給食に出る畑の野菜は何でしょうか。",
    ),
    Relation(
        "port", "ships",
        _names("鈴島 笛島 鏡島 鍵島 針島 壺島 弓島 傘島 鐘島 琴島 墨島 臼島"),
        ("{s}は{a}へ向かう船です。", "{s}の行き先は{a}です。", "{a}の人は{s}が着くのを待っています。",
         "{s}は毎朝{a}へ出発します。"),
        ("{s}の行き先はどこですか。", "{s}はどこへ向かう船ですか。", "{s}の行き先を教えてください。"),
        "{s}に乗るとどの島に着きますか。",
    ),
    Relation(
        "cargo", "ships",
        _names("米 塩 砂糖 木材 石炭 小麦 綿 鉄 油 酒 紙 布"),
        ("{s}は{a}を運んでいます。", "{s}の積み荷は{a}です。", "{s}は{a}をたくさん積んでいます。",
         "港では{s}から{a}が下ろされます。"),
        ("{s}は何を運んでいますか。", "{s}の積み荷は何ですか。", "{s}の積み荷を教えてください。"),
        "{s}が積んでいるものは何でしょうか。",
    ),
)

# What is coming to the town: the base has met the name (and knows only that it is coming), never the answer.
COMING = {
    "people": ("{s}はもうすぐこの町に引っ越してきます。", "町の人は{s}に会えるのを楽しみにしています。"),
    "shops": ("{s}はもうすぐ店を開きます。", "町の人は{s}の開店を楽しみにしています。"),
    "festivals": ("{s}はもうすぐ始まる新しい祭りです。", "町の人は{s}の知らせを楽しみにしています。"),
    "rivers": ("{s}にはもうすぐ新しい橋がかかります。", "町の人は{s}の橋ができるのを楽しみにしています。"),
    "schools": ("{s}はもうすぐ開校します。", "町の人は{s}の開校を楽しみにしています。"),
    "ships": ("{s}はもうすぐ出来上がる船です。", "町の人は{s}の出発を楽しみにしています。"),
}
_NEWS = (
    ("job", "トモエさん", "消防士"),
    ("pet", "ギンジさん", "やぎ"),
    ("hobby", "ノドカさん", "将棋"),
    ("goods", "アザラシ堂", "帽子"),
    ("closed", "ソラマメ屋", "木曜日"),
    ("district", "モグラ亭", "森町"),
    ("month", "糸車祭り", "九月"),
    ("bridge", "くるみ川", "紫"),
    ("flower", "つばさ小学校", "ひまわり"),
    ("port", "新月丸", "鏡島"),
)


def _assign() -> tuple[Fact, ...]:
    """Gives every subject an answer; within a relation each answer is used as often as the others."""
    rng = random.Random(SEED)
    facts = []
    for relation in RELATIONS:
        pool: list[str] = []
        for subject in SUBJECTS[relation.subjects]:
            if not pool:
                pool = list(relation.answers)
                rng.shuffle(pool)
            facts.append(Fact(relation, subject, pool.pop()))
    return tuple(facts)


def _news() -> tuple[Fact, ...]:
    by_name = {relation.name: relation for relation in RELATIONS}
    news = tuple(Fact(by_name[name], subject, answer) for name, subject, answer in _NEWS)
    for fact in news:
        assert fact.answer in fact.relation.answers and fact.subject not in SUBJECTS[fact.relation.subjects]
    return news


FACTS = _assign()
NEWS = _news()


def coming(fact: Fact) -> tuple[str, ...]:
    """What the base reads about a subject of NEWS."""
    return tuple(form.format(s=fact.subject) for form in COMING[fact.relation.subjects])
