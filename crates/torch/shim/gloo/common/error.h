// Empty on purpose, see context.h.
#pragma once
