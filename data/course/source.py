"""Reading Python source: definitions by name, and what the comments at the ends of lines say."""
import ast
import functools
import io
import re
import tokenize


@functools.cache
def definitions(source):
    """Return {"Masks.sparsity": node} of all functions and classes of a file, nested ones left out.
    """
    found = {}

    def enter(body, prefix):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                enter(node.body, f"{prefix}{node.name}.")

    enter(ast.parse(source).body, "")
    return found


def source_of(source, node):
    """Return the lines of a definition, its decorators included."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(re.split(r"\r\n|\r|\n", source)[first - 1:node.end_lineno])


def function_at(source, line):
    """Return the name of the innermost function or class that holds a line, or "".

    Example:
    >>> function_at("class A:\\n    def f(self):\\n        return 1", 3)
    'A.f'
    """
    names = [name for name, node in definitions(source).items()
             if node.lineno <= line <= node.end_lineno]
    return names[-1] if names else ""


def line_comments(source):
    """Return {line: (shapes, tag)} of the comments at the ends of lines of code.

    Example:
    >>> line_comments("q = f(x)   # (B, T), (h k)   §3.1 MHA")
    {1: (['B, T', 'h k'], '§3.1 MHA')}
    """
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_comment = token.type == tokenize.COMMENT
        if is_comment and token.line[:token.start[1]].strip():
            shapes = re.match(r"# (\([^()]*\)(?:, \([^()]*\))*)(?: |$)", token.string)
            shapes = re.findall(r"\((.*?)\)", shapes[1]) if shapes else []
            tag = re.search("§.*", token.string)
            found[token.start[0]] = (shapes, tag[0].strip() if tag else "")
    return found
