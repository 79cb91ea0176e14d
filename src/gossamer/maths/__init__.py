"""Mathematics that knows no model: schedules, statistics, proximal operators, Pareto fronts."""
