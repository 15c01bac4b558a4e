"""Words and scenes of `text_rendering`: what may be written, and what it is written on, in English and Chinese."""


def words_of(text: str) -> tuple[str, ...]:
    """The words between white space."""
    return tuple(text.split())


ENGLISH_ADJECTIVES = words_of(
    """amber ancient autumn better big bitter blue brave bright broken calm clever cold copper cosy crimson crisp daily
    dark early eastern electric endless fancy fast fine first fresh friendly frozen gentle giant gold golden grand
    great green happy hidden honest hungry icy iron kind late lazy little local lost lucky magic midnight modern
    narrow new noble northern old open orange patient perfect plain proud public purple quiet rapid rare ready red
    royal salty secret sharp silent silver simple sleepy small smart soft solid southern special spicy spring steady
    strong summer sunny sweet tall tiny true velvet vivid warm western white wild winter wise wooden young"""
)
ENGLISH_NOUNS = words_of(
    """airport apple archive artist autumn avenue bakery balcony bank barber basket beach bicycle bird book bottle
    bread breakfast bridge brush button cabin cafe camera candle canyon castle cat cellar cheese cherry cinema
    circus city clinic clock cloud coffee coast concert cookie corner cottage dancer desert diner doctor door dragon
    dream engine factory farm feather festival field fire fish flower forest fountain fox friend garden gate ginger
    glass grape harbour harvest hill history holiday honey horse hotel house island jacket journey juice key kitchen
    lake lamp lantern laundry leaf lemon letter library light lion lunch machine mango map market meadow melody
    midnight milk mirror morning mountain museum music night noodle ocean office olive orchard oven owl paper park
    peach pepper piano picnic pilot pine pizza planet pocket poem pond puzzle rabbit radio rain recipe ribbon river
    road robot rocket room rose salad school season ship shop silk sky snow song soup spoon square stage star
    station stone storm story street studio sugar summer sunset supper table tailor tea temple theatre ticket tiger
    tower toy train travel tree tunnel valley village violin voyage wagon water wave whale wheel wind window winter
    wolf wood workshop zoo"""
)
ENGLISH_VERBS = words_of(
    """bake borrow bring build buy carry catch celebrate choose climb collect cook cross discover draw dream enjoy
    explore feed find follow forget gather grow guard hear help hold imagine invite join keep know learn love make
    meet mend open order paint pick plant play protect read remember rent repair return save see share shine sing
    start taste teach touch try visit wash watch welcome win wonder write"""
)
ENGLISH_PATTERNS: dict[int, tuple[str, ...]] = {
    1: ("N", "N", "V", "A"),
    2: ("A N", "A N", "N N", "V N"),
    3: ("A A N", "V the N", "N and N", "A N N", "the A N"),
    4: ("V the A N", "A N and N", "N of the N", "N for the N"),
    5: ("V a A A N", "A N and A N", "A N of the N", "V the N and V"),
}
"""Number of words → patterns of adjectives, nouns, verbs and words as they stand."""

CHINESE_PIECES: dict[int, tuple[str, ...]] = {
    2: words_of(
        """阳光 月亮 星空 春天 夏天 秋天 冬天 清晨 黄昏 今夜 明天 故乡 远方 城市 乡村 山谷 河流 大海 森林 草原 沙漠 花园
        果园 公园 广场 街角 车站 机场 码头 书店 茶馆 面馆 酒馆 早餐 午餐 晚餐 咖啡 牛奶 面包 苹果 葡萄 柠檬 樱桃 豆浆
        饺子 火锅 音乐 电影 故事 诗歌 绘画 舞蹈 照片 信件 时间 梦想 希望 勇气 智慧 友谊 幸福 快乐 温暖 宁静 自由 和平
        健康 安全 新鲜 美味 清凉 热情 真诚 优雅 古老 现代 神奇 闪亮 金色 蓝色 红色 绿色 白色 欢迎 请勿 注意 小心 禁止
        开放 关闭 出口 入口 免费 特价 营业 休息 预约 学习 阅读 写作 旅行 探索 发现 分享 珍惜 感谢 祝福 庆祝 相遇 回家
        出发 前进 努力 坚持 微笑 飞翔 老虎 熊猫 白鹤 骏马 鲤鱼 蝴蝶 荷花 梅花 竹林 松树"""
    ),
    3: words_of(
        """图书馆 博物馆 美术馆 电影院 咖啡馆 游乐园 体育场 火车站 动物园 植物园 音乐会 生日会 运动会 马拉松 冰淇淋 巧克力
        葡萄酒 牛肉面 豆腐脑 糖葫芦 萤火虫 向日葵 蒲公英 长颈鹿 太阳花 望远镜 热气球 摩天轮 红灯笼 小巷子 老地方 好时光
        新世界 大自然 夜归人 读书人 慢生活 下午茶 请安静 请排队 别忘记 在路上 向前走 一起来 等你来 看世界 爱生活 有故事"""
    ),
}
"""Number of characters → pieces of that length, of which strings are put together."""

ENGLISH_SCENES = {
    "poster": "a vintage travel poster on a brick wall with the title {}",
    "shop_sign": "a painted shop sign above a wooden door that reads {}",
    "book_cover": "a hardcover book on a linen cloth, its cover titled {}",
    "whiteboard": "a whiteboard in a bright office with {} written in blue marker",
    "handwritten_note": "a handwritten note on torn paper beside a cup of tea that says {}",
    "chalkboard": "a chalkboard outside a small restaurant with {} in white chalk",
    "neon_sign": "a glowing neon sign in a rainy street at night that reads {}",
    "billboard": "a large billboard beside an empty highway with the words {}",
    "t_shirt": "a folded cotton shirt on a shelf, printed with {}",
    "mug": "a ceramic mug on a kitchen counter with {} on its side",
    "street_sign": "an enamel street sign on a stone wall that says {}",
    "magazine": "a glossy magazine on a glass table with the headline {}",
    "cake": "a round birthday cake with {} in chocolate icing",
    "label": "a glass jar on a market stall, its paper label saying {}",
    "phone_screen": "a phone lying on a desk, its screen showing the message {}",
    "banner": "a cloth banner hung between two trees with the words {}",
}
CHINESE_SCENES = {
    "poster": "一张贴在砖墙上的复古旅行海报，标题是{}",
    "shop_sign": "木门上方的一块手绘店铺招牌，上面写着{}",
    "book_cover": "一本放在亚麻布上的精装书，封面书名为{}",
    "whiteboard": "明亮办公室里的一块白板，用蓝色马克笔写着{}",
    "handwritten_note": "茶杯旁一张撕下的纸条，手写着{}",
    "chalkboard": "小餐馆门外的一块黑板，用白色粉笔写着{}",
    "neon_sign": "雨夜街头一块发光的霓虹灯牌，显示{}",
    "billboard": "空旷公路旁的一块大型广告牌，上面写着{}",
    "t_shirt": "货架上一件叠好的棉质衬衫，印着{}",
    "mug": "厨房台面上的一只陶瓷杯，杯身写着{}",
    "street_sign": "石墙上的一块搪瓷路牌，写着{}",
    "magazine": "玻璃桌上的一本时尚杂志，大标题是{}",
    "cake": "一个圆形生日蛋糕，用巧克力酱写着{}",
    "label": "集市摊位上的一个玻璃罐，纸标签上写着{}",
    "phone_screen": "桌上的一部手机，屏幕显示消息{}",
    "banner": "挂在两棵树之间的一条布横幅，上面写着{}",
}
ENGLISH_MORE = (
    "{} in smaller letters below",
    "{} along the bottom edge",
    "{} in the upper corner",
    "{} in thin script beside it",
)
CHINESE_MORE = ("下方用小字写着{}", "底部边缘写着{}", "右上角写着{}", "旁边用细体写着{}")
"""Where further strings stand."""
