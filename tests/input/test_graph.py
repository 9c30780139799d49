"""Tests the control flow of the input's graphs."""

import tensorflow as tf

from advprop_jax.input import graph


def test_or_else_gives_the_result_or_the_fallback():
  @tf.function
  def first_byte(encoded):
    return graph.or_else(
      lambda x: tf.io.decode_raw(tf.strings.substr(x, 0, 1), tf.uint8)[0],
      encoded,
      tf.constant(7, tf.uint8),
    )

  assert first_byte(tf.constant(b'a')) == ord('a')
  assert first_byte(tf.constant(b'')) == 7  # Where indexing raises.


def test_a_rare_branch_is_one_node():
  @tf.function
  def call(x):
    many = lambda x: tf.sin(tf.cos(tf.tan(x)))  # noqa: E731
    return tf.cond(x > 1, graph.rare(many, x), lambda: x)

  assert call(tf.constant(0.5)) == 0.5
  assert call(tf.constant(2.0)) == tf.sin(tf.cos(tf.tan(2.0)))
  functions = call.get_concrete_function(tf.constant(2.0)).graph.as_graph_def().library
  (branch,) = [f for f in functions.function if 'true' in f.signature.name]
  assert not {'Sin', 'Cos', 'Tan'} & {node.op for node in branch.node_def}
