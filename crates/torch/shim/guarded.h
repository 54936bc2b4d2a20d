// What every function of the shim is wrapped in: no C++ exception leaves, its words stay for `tailor_last_error`.
#pragma once
#include <c10/util/Exception.h>

#include <cstdint>
#include <string>

// Of the calling thread; defined in shim.cpp.
std::string& tailor_error_words();

template <typename F>
int32_t guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    tailor_error_words() = error.what_without_backtrace();
  } catch (const std::exception& error) {
    tailor_error_words() = error.what();
  } catch (...) {
    tailor_error_words() = "unknown C++ exception";
  }
  return 1;
}
