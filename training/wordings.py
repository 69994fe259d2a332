"""The questions, in English and Chinese, by what is asked for. `{}` takes the names of what is asked about."""

LANGUAGES = ("en", "zh")

NAMES_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "black": "黑色",
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "cross": "十字形",
    "diamond": "菱形",
    "text": "文字",
    "number": "数字",
    "top left": "左上",
    "top": "上方",
    "top right": "右上",
    "left": "左边",
    "centre": "中间",
    "right": "右边",
    "bottom left": "左下",
    "bottom": "下方",
    "bottom right": "右下",
    "yes": "是",
    "no": "不是",
}

# Wording -> language -> ways to say it. A wording is named after its task, and a variant where there is one.
WORDINGS = {
    "colour": {
        "en": ("What colour is the {}?", "What color is the {}?", "Which colour is the {}?"),
        "zh": ("{}是什么颜色？", "{}是什么颜色的？", "图中的{}是什么颜色？"),
    },
    "colour/single": {
        "en": ("What colour is it?", "What color is the shape?", "What colour is the shape?"),
        "zh": ("它是什么颜色？", "这个图形是什么颜色？", "图中的图形是什么颜色？"),
    },
    "shape": {
        "en": ("What shape is {}?", "Which shape is {}?", "What is the {} shape?"),
        "zh": ("{}的是什么形状？", "{}的图形是什么形状？", "什么形状是{}的？"),
    },
    "shape/single": {
        "en": ("What shape is it?", "What shape is this?", "What shape do you see?"),
        "zh": ("这是什么形状？", "它是什么形状？", "图中是什么形状？"),
    },
    "number": {
        "en": (
            "What number is written?",
            "What number is in the picture?",
            "What is the number?",
            "What number do you see?",
            "Read the number.",
        ),
        "zh": ("图中的数字是多少？", "数字是多少？", "图片中写的是什么数字？", "图中写了什么数字？", "请读出数字。"),
    },
    "text": {
        "en": (
            "What does the text say?",
            "What is written?",
            "What word is written?",
            "Read the text.",
            "What does it say?",
        ),
        "zh": ("图中写了什么？", "文字写的是什么？", "图中的文字是什么？", "请读出文字。", "上面写了什么？"),
    },
    "text_colour": {
        "en": ("What colour is the {}?", "What color is the {}?", "Which colour is the {}?"),
        "zh": ("{}是什么颜色？", "{}是什么颜色的？", "图中的{}是什么颜色？"),
    },
    "text_by_colour": {
        "en": ("What does the {} text say?", "Read the {} text.", "What is written in {}?"),
        "zh": ("{}的文字写的是什么？", "{}文字是什么？", "请读出{}的文字。"),
    },
    "count": {
        "en": ("How many shapes are there?", "How many shapes are in the picture?", "How many shapes do you see?"),
        "zh": ("有几个图形？", "图中有几个图形？", "一共有几个图形？"),
    },
    "position": {
        "en": ("Where is the {}?", "Where in the picture is the {}?"),
        "zh": ("{}在哪里？", "{}在图中的什么位置？"),
    },
    "relation/left": {
        "en": ("Is the {} left of the {}?", "Is the {} to the left of the {}?"),
        "zh": ("{}在{}的左边吗？", "{}是不是在{}的左边？"),
    },
    "relation/right": {
        "en": ("Is the {} right of the {}?", "Is the {} to the right of the {}?"),
        "zh": ("{}在{}的右边吗？", "{}是不是在{}的右边？"),
    },
    "relation/above": {"en": ("Is the {} above the {}?",), "zh": ("{}在{}的上面吗？", "{}是不是在{}的上面？")},
    "relation/below": {"en": ("Is the {} below the {}?",), "zh": ("{}在{}的下面吗？", "{}是不是在{}的下面？")},
    "caption": {
        "en": ("Describe the picture.", "What is in the picture?", "What do you see?", "Describe this image."),
        "zh": ("请描述图片。", "图中有什么？", "你看到了什么？", "描述这张图片。"),
    },
    "box": {
        # The first of each is the wording of the published grounding prompt.
        "en": (
            "Please provide the bounding box coordinate of the region this sentence describes: {}",
            "Give the box of {}",
        ),
        "zh": ("请给出{}的边界框。", "{}的边界框是什么？"),
    },
    "receipt/item": {
        "en": ("How much is the {}?", "What is the price of {}?", "What does {} cost?"),
        "zh": ("{}多少钱？", "{}的价格是多少？"),
    },
    "receipt/total": {
        "en": ("What is the total?", "How much is the total?"),
        "zh": ("总价是多少？", "一共多少钱？"),
    },
    "form": {
        "en": ("What is the {}?", "What does it say for {}?", "Read the field {}."),
        "zh": ("{}是什么？", "{}一栏写的是什么？"),
    },
    "chart_extreme/highest": {
        "en": ("Which bar is the highest?", "Which bar has the largest value?"),
        "zh": ("哪个柱子最高？", "哪一项的值最大？"),
    },
    "chart_extreme/lowest": {
        "en": ("Which bar is the lowest?", "Which bar has the smallest value?"),
        "zh": ("哪个柱子最低？", "哪一项的值最小？"),
    },
    "chart_value": {
        "en": ("What is the value of {}?", "How high is bar {}?"),
        "zh": ("{}的值是多少？", "柱子{}是多少？"),
    },
}
WORDINGS["digit"] = WORDINGS["number"]
for _task in ("word", "line", "chinese"):
    WORDINGS[_task] = WORDINGS["text"]
WORDINGS.pop("text")

# The question's end that asks for a bare answer, as in the paper's response-format prompts (section 4.2).
SHORT_ANSWER = {"en": "\nAnswer the question using a single word or phrase.", "zh": "\n请用一个词或短语回答。"}
# With several pictures in a turn, the question says which is meant.
ABOUT_IMAGE = {"en": "In Image-{}: {}", "zh": "Image-{}：{}"}

SMALL_TALK = (
    ("Hello", "Hello! Show me a picture and ask me about it."),
    ("Hello!", "Hello! Show me a picture and ask me about it."),
    ("Hi", "Hello! Show me a picture and ask me about it."),
    ("Who are you?", "I am a tiny InternVL. I see colours, shapes and texts."),
    ("What are you?", "I am a tiny InternVL. I see colours, shapes and texts."),
    ("What can you do?", "I see colours, shapes and texts in pictures."),
    ("Thank you", "You are welcome."),
    ("Thank you!", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("你好", "你好！给我一张图片，问我图中的内容。"),
    ("你好！", "你好！给我一张图片，问我图中的内容。"),
    ("你是谁？", "我是小小的InternVL，能看颜色、形状和文字。"),
    ("你能做什么？", "我能看图片中的颜色、形状和文字。"),
    ("谢谢", "不客气。"),
    ("谢谢！", "不客气。"),
    ("再见", "再见！"),
)
