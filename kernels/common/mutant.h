// Planted mistakes, for testing the tests.
//
// FF_MUTANT(name, right, wrong) is `right` in every build but the test build, where set_mutant("name") makes it
// `wrong`. The suite must turn red for each of them.
#pragma once

#if defined(FF_TEST_BUILD)
namespace frcnn_fast {
// The chosen mistake, or null. Defined and set by the test build's module.
extern const char* active_mutant;
inline bool mutant_is(const char* name) {
  const char* a = active_mutant;
  if (!a) return false;
  while (*a && *a == *name) ++a, ++name;
  return *a == *name;
}
}  // namespace frcnn_fast
#define FF_MUTANT(name, right, wrong) (::frcnn_fast::mutant_is(#name) ? (wrong) : (right))
#else
#define FF_MUTANT(name, right, wrong) (right)
#endif
